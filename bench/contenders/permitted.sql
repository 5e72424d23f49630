-- What may be shared, by a filter in SQL: for the contenders that filter there, and to check what everybody has sent.
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
    AND phone_is_readable
    AND trim(first_name) <> '';

-- The same columns of every row in the windows: for a contender that knows no rule.
DO $$ BEGIN
    EXECUTE (
        SELECT
            format(
                'CREATE OR REPLACE VIEW bench.unruled AS SELECT %s FROM bench.appointments',
                string_agg(quote_ident(attname), ', ' ORDER BY attnum)
            )
        FROM pg_attribute
        WHERE attrelid = 'bench.permitted'::regclass AND attnum > 0 AND NOT attisdropped
    );
END $$;

GRANT USAGE ON SCHEMA bench TO medlock_app;
GRANT SELECT ON ALL TABLES IN SCHEMA bench TO medlock_app;
