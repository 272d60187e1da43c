"use strict";

const login = document.getElementById("login");
const logout = document.getElementById("logout");

async function show() {
  const answer = await fetch("/openapi.json");
  if (answer.status === 401) {
    login.hidden = false;
    return;
  }
  const schema = await answer.json();
  // The bundled Swagger UI reads OpenAPI 3.0 by its number alone, and shows what 3.1 adds as it is.
  schema.openapi = "3.0.3";
  SwaggerUIBundle({ spec: schema, dom_id: "#documentation", deepLinking: true, validatorUrl: null });
  logout.hidden = !schema.security;
}

login.addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = document.getElementById("token");
  const answer = await fetch("/login", { method: "POST", headers: { Authorization: `Bearer ${token.value.trim()}` } });
  token.value = "";
  if (answer.ok) {
    location.reload();
  } else {
    document.getElementById("error").textContent = (await answer.json()).error.message;
  }
});

logout.addEventListener("click", async () => {
  await fetch("/logout", { method: "POST" });
  location.reload();
});

show();
