-- The demo Medlock: what the product reads of a clinic information system, and what it writes there for partners.
-- Run by the database's owner, at every start of a stack: one that was made before gets what has been added since.
-- The product's log-ins must exist in the server: medlock_app reads; medlock_actions does what partners asked for;
-- medlock_switch turns access switches for the heads of clinics.
-- appointment.patient_id and appointment.doctor_id carry no foreign keys on purpose: like the real thing, this
-- database may hold references to people who are gone or who belong to another clinic.
CREATE SCHEMA IF NOT EXISTS medlock;

CREATE TABLE IF NOT EXISTS medlock.clinic (
    id bigint PRIMARY KEY,
    lpu_id bigint UNIQUE,
    name text,
    timezone text -- IANA name
);

CREATE TABLE IF NOT EXISTS medlock.staff (
    id bigint PRIMARY KEY,
    clinic_id bigint REFERENCES medlock.clinic,
    full_name text,
    login text UNIQUE,
    role text -- head, administrator, doctor, registrar
);

CREATE TABLE IF NOT EXISTS medlock.medflex_access (
    clinic_id bigint PRIMARY KEY REFERENCES medlock.clinic,
    enabled boolean,
    changed_at timestamptz,
    changed_by bigint -- medlock.staff.id; may be an id that nobody has
);

CREATE TABLE IF NOT EXISTS medlock.partner (
    id bigint PRIMARY KEY,
    name text,
    kind text
);

CREATE TABLE IF NOT EXISTS medlock.clinic_partner (
    clinic_id bigint REFERENCES medlock.clinic,
    partner_id bigint, -- medlock.partner.id; may be an id that nobody has
    enabled boolean,
    scenarios text[],
    PRIMARY KEY (clinic_id, partner_id)
);

CREATE TABLE IF NOT EXISTS medlock.doctor (
    id bigint PRIMARY KEY,
    clinic_id bigint,
    full_name text,
    speciality text,
    medflex_banned boolean,
    updated_at timestamptz
);

CREATE TABLE IF NOT EXISTS medlock.patient (
    id bigint PRIMARY KEY,
    clinic_id bigint,
    last_name text,
    first_name text,
    patronymic text,
    phone text,
    birth_date date,
    refused_personal_data boolean,
    refused_notifications boolean,
    refused_marketing boolean,
    updated_at timestamptz
);

CREATE TABLE IF NOT EXISTS medlock.appointment (
    id bigint PRIMARY KEY,
    clinic_id bigint,
    patient_id bigint,
    doctor_id bigint,
    starts_at timestamptz,
    ends_at timestamptz,
    status text, -- unconfirmed, confirmed, arrived, completed, cancelled, no_show; now and then another
    is_anonymous boolean,
    entry text, -- direct, online
    comment text,
    created_at timestamptz,
    updated_at timestamptz
);

CREATE TABLE IF NOT EXISTS medlock.smart_care_scenario (
    clinic_id bigint REFERENCES medlock.clinic,
    scenario text,
    enabled boolean,
    PRIMARY KEY (clinic_id, scenario)
);

-- The working time of each doctor. Nothing outside of it can be booked.
CREATE TABLE IF NOT EXISTS medlock.doctor_schedule (
    id bigint PRIMARY KEY,
    clinic_id bigint,
    doctor_id bigint,
    starts_at timestamptz,
    ends_at timestamptz
);

-- What Smart Care has sent to patients, without its text.
CREATE TABLE IF NOT EXISTS medlock.smart_care_message (
    id bigint PRIMARY KEY,
    clinic_id bigint,
    appointment_id bigint,
    scenario text,
    sent_at timestamptz
);

-- The journal of what partners asked for: one row for each decision, refusals too, written together with its effect.
CREATE TABLE IF NOT EXISTS medlock.partner_action (
    action_id uuid PRIMARY KEY,
    clinic_id bigint, -- this and the next two as the partner gave them: none of them need exist
    appointment_id bigint,
    partner_id bigint,
    type text, -- confirm, cancel, reschedule, notification
    scenario text,
    status_code int NOT NULL,
    reason text NOT NULL,
    digest_after bigint, -- a keyed fingerprint of what the action made of the appointment
    decided_at timestamptz NOT NULL
);

CREATE INDEX IF NOT EXISTS staff_clinic ON medlock.staff (clinic_id);
CREATE INDEX IF NOT EXISTS doctor_clinic ON medlock.doctor (clinic_id);
CREATE INDEX IF NOT EXISTS doctor_updated ON medlock.doctor (updated_at);
CREATE INDEX IF NOT EXISTS patient_clinic ON medlock.patient (clinic_id);
CREATE INDEX IF NOT EXISTS patient_updated ON medlock.patient (updated_at);
CREATE INDEX IF NOT EXISTS appointment_clinic_start ON medlock.appointment (clinic_id, starts_at);
CREATE INDEX IF NOT EXISTS appointment_patient ON medlock.appointment (patient_id);
CREATE INDEX IF NOT EXISTS appointment_doctor_start ON medlock.appointment (doctor_id, starts_at);
CREATE INDEX IF NOT EXISTS appointment_updated ON medlock.appointment (updated_at);
CREATE INDEX IF NOT EXISTS doctor_schedule_doctor ON medlock.doctor_schedule (doctor_id, starts_at);
CREATE INDEX IF NOT EXISTS smart_care_message_appointment ON medlock.smart_care_message (appointment_id);
CREATE INDEX IF NOT EXISTS partner_action_appointment ON medlock.partner_action (appointment_id);
CREATE INDEX IF NOT EXISTS partner_action_decided ON medlock.partner_action (decided_at);

GRANT USAGE ON SCHEMA medlock TO medlock_app, medlock_switch;
GRANT SELECT ON ALL TABLES IN SCHEMA medlock TO medlock_app;
-- All that what partners ask for needs, and may change; docs/data-contract.md has the same lines.
GRANT USAGE ON SCHEMA medlock TO medlock_actions;
GRANT SELECT ON
medlock.clinic, medlock.staff, medlock.medflex_access, medlock.partner, medlock.clinic_partner, medlock.doctor,
medlock.patient, medlock.appointment, medlock.doctor_schedule TO medlock_actions;
GRANT UPDATE (status, starts_at, ends_at, updated_at) ON medlock.appointment TO medlock_actions;
GRANT SELECT, INSERT, DELETE ON medlock.partner_action TO medlock_actions;
GRANT SELECT ON medlock.clinic, medlock.staff, medlock.medflex_access TO medlock_switch;
GRANT INSERT, UPDATE ON medlock.medflex_access TO medlock_switch;
