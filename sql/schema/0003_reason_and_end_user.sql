-- Why a call failed, and for which end user it was. They may be NULL: replicas that do not know
-- them yet still write rows while a new version is rolled out.
ALTER TABLE calls ADD COLUMN reason TEXT;
ALTER TABLE calls ADD COLUMN end_user TEXT;
