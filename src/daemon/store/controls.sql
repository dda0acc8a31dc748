-- Control pictures that are kept with a painting: JSON, what each shows.
ALTER TABLE paintings ADD COLUMN controls TEXT NOT NULL DEFAULT '[]';
