-- Whether a key's holder names its end users in headers, and the secret that signs them ('': none). The
-- secret is kept as it is, since checking a signature needs it; without a key it opens nothing.
ALTER TABLE api_keys ADD COLUMN trust_client_headers BIGINT NOT NULL DEFAULT 0;
ALTER TABLE api_keys ADD COLUMN client_headers_secret TEXT NOT NULL DEFAULT '';
