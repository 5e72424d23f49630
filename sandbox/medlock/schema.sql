-- The demo Medlock: what the product reads of a clinic information system.
-- Run by the database's owner. The role medlock_app (the product's log-in) must exist in the server.
-- appointment.patient_id and appointment.doctor_id carry no foreign keys on purpose: like the real thing, this
-- database may hold references to people who are gone or who belong to another clinic.
CREATE SCHEMA medlock;

CREATE TABLE medlock.clinic (
    id bigint PRIMARY KEY,
    lpu_id bigint UNIQUE,
    name text,
    timezone text -- IANA name
);

CREATE TABLE medlock.staff (
    id bigint PRIMARY KEY,
    clinic_id bigint REFERENCES medlock.clinic,
    full_name text,
    login text UNIQUE,
    role text -- head, administrator, doctor, registrar
);

CREATE TABLE medlock.medflex_access (
    clinic_id bigint PRIMARY KEY REFERENCES medlock.clinic,
    enabled boolean,
    changed_at timestamptz,
    changed_by bigint -- medlock.staff.id; may be an id that nobody has
);

CREATE TABLE medlock.partner (
    id bigint PRIMARY KEY,
    name text,
    kind text
);

CREATE TABLE medlock.clinic_partner (
    clinic_id bigint REFERENCES medlock.clinic,
    partner_id bigint, -- medlock.partner.id; may be an id that nobody has
    enabled boolean,
    scenarios text[],
    PRIMARY KEY (clinic_id, partner_id)
);

CREATE TABLE medlock.doctor (
    id bigint PRIMARY KEY,
    clinic_id bigint,
    full_name text,
    speciality text,
    medflex_banned boolean,
    updated_at timestamptz
);

CREATE TABLE medlock.patient (
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

CREATE TABLE medlock.appointment (
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

CREATE TABLE medlock.smart_care_scenario (
    clinic_id bigint REFERENCES medlock.clinic,
    scenario text,
    enabled boolean,
    PRIMARY KEY (clinic_id, scenario)
);

CREATE INDEX staff_clinic ON medlock.staff (clinic_id);
CREATE INDEX doctor_clinic ON medlock.doctor (clinic_id);
CREATE INDEX doctor_updated ON medlock.doctor (updated_at);
CREATE INDEX patient_clinic ON medlock.patient (clinic_id);
CREATE INDEX patient_updated ON medlock.patient (updated_at);
CREATE INDEX appointment_clinic_start ON medlock.appointment (clinic_id, starts_at);
CREATE INDEX appointment_patient ON medlock.appointment (patient_id);
CREATE INDEX appointment_doctor_start ON medlock.appointment (doctor_id, starts_at);
CREATE INDEX appointment_updated ON medlock.appointment (updated_at);

GRANT USAGE ON SCHEMA medlock TO medlock_app;
GRANT SELECT ON ALL TABLES IN SCHEMA medlock TO medlock_app;
