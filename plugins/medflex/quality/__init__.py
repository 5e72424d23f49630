"""Data quality: Great Expectations suites, their evaluation in bounded memory, and the report of a run.

``suites`` says what must hold, ``validation`` looks (:func:`validation.validate_source`,
:func:`validation.validate_outgoing`, :func:`validation.validate_run`), ``results`` is what remains of a look (counts,
never a value), ``report`` turns the results of a run into Data Docs.

Importing this package is cheap. Great Expectations itself costs a second or more and, beside pandas and Arrow, some 85
MB, so it is imported by the first call that needs it and by nothing else.
"""
