-- For the contenders that know no clinics' switches and windows: a table of these that the benchmark fills, and the view
-- of what may be shared. Between the two the benchmark makes bench.appointments, of the product's own query.
CREATE SCHEMA IF NOT EXISTS bench;
CREATE TABLE IF NOT EXISTS bench.clinic_window (
    clinic_id bigint PRIMARY KEY,
    lpu_id bigint NOT NULL,
    partners text NOT NULL, -- ids of the partners, with commas between; empty if nothing may be sent
    starts_from timestamptz NOT NULL,
    starts_before timestamptz NOT NULL
);
TRUNCATE bench.clinic_window;
-- Phones that are not one valid number (R17): SQL cannot tell, and all contenders are to post the same records.
CREATE TABLE IF NOT EXISTS bench.unreadable_phone (phone text PRIMARY KEY);
TRUNCATE bench.unreadable_phone;
