"""Raw footage and pictures become clips to train on: cut, sifted, cleaned, captioned, in shards with a manifest."""
