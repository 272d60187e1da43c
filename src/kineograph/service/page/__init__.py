"""The page of the API's interactive documentation, and logging in to it. All its files come from installed packages."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel
from starlette.requests import Request
from swagger_ui_bundle import swagger_ui_path

from kineograph.service.api.access import COOKIE_NAME, Access, current_owner
from kineograph.service.api.responses import ApiError
from kineograph.service.tokens import make_cookie

OWN, BUNDLE = Path(str(files(__name__))), Path(str(swagger_ui_path))
FILES = {
    "page.js": OWN,
    "page.css": OWN,
    "swagger-ui-bundle.js": BUNDLE,
    "swagger-ui.css": BUNDLE,
    "favicon-32x32.png": BUNDLE,
}

router = APIRouter()


class Session(BaseModel):
    """Who a browser is logged in as. expires_at: seconds since 1970; None where no tokens are needed."""

    object: Literal["session"] = "session"
    owner: str
    expires_at: int | None = None


class EndedSession(BaseModel):
    """The confirmation that a browser is logged out."""

    object: Literal["session.deleted"] = "session.deleted"
    deleted: bool = True


@router.get("/", include_in_schema=False)
def show_documentation() -> FileResponse:
    """Return the page of the API's interactive documentation."""
    return FileResponse(OWN / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})


@router.get("/page/{name}", include_in_schema=False)
def get_page_file(name: str) -> FileResponse:
    """Return a file of the page."""
    if name not in FILES:
        raise ApiError(404, "not_found", "the page has no such file")
    return FileResponse(FILES[name] / name, headers={"Cache-Control": "no-cache"})


@router.post("/login", tags=["server"])
def log_in(request: Request, response: Response, owner: Annotated[str, Depends(current_owner)]) -> Session:
    """Exchange the token of this request for a cookie, with which a browser needs no token for a while."""
    access: Access = request.app.state.access
    if access.tokens is None:
        return Session(owner=owner)
    token_id = request.state.token_id
    if token_id is None:
        raise ApiError(400, "token_needed", "a login needs the token itself: send `Authorization: Bearer TOKEN`")
    seconds = int(access.settings.login_hours * 3600)
    expires = int(access.clock()) + seconds
    response.set_cookie(
        COOKIE_NAME,
        make_cookie(access.cookie_key, token_id, expires),
        max_age=seconds,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return Session(owner=owner, expires_at=expires)


@router.post("/logout", tags=["server"])
def log_out(response: Response, owner: Annotated[str, Depends(current_owner)]) -> EndedSession:
    """Remove the cookie of a browser."""
    response.delete_cookie(COOKIE_NAME, httponly=True, samesite="strict")
    return EndedSession()
