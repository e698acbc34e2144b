"""The page, section by section: a header and a curation → the values that the template of the same name prints."""
