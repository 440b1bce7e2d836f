-- The kind of background call that a call was; '' for a chat, NULL in rows of older versions.
ALTER TABLE calls ADD COLUMN task TEXT;
