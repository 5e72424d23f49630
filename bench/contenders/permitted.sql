-- What may be shared, as far as a simple filter tells: for dlt, and to check what the others have sent.
CREATE OR REPLACE VIEW bench.permitted AS
SELECT
    clinic_id,
    lpu_id,
    partners,
    appointment_id,
    doctor_id,
    starts_at,
    ends_at,
    status,
    entry,
    first_name,
    patronymic,
    phone,
    updated_at
FROM bench.appointments
WHERE
    refused_personal_data IS FALSE
    AND refused_notifications IS FALSE
    AND refused_marketing IS FALSE
    AND is_anonymous IS FALSE
    AND doctor_banned IS FALSE
    AND patient_found
    AND doctor_found
    AND partners <> ''
    AND ends_at > starts_at
    AND entry IN ('direct', 'online')
    AND trim(phone) <> ''
    AND trim(first_name) <> '';

GRANT USAGE ON SCHEMA bench TO medlock_app;
GRANT SELECT ON ALL TABLES IN SCHEMA bench TO medlock_app;
