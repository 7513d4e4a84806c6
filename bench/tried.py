"""What was tried, as prose: found by hand, with the figures of that day."""

TRIED = """
## What was tried

Measured by hand on 2026-11-23, on a machine of two cores that others kept busy (load 3
to 5): none of these seconds is one of the tables above.

- **One COPY after the other, on one connection: kept.** In three turns with 300,000
  rows the server's process computed 1.1 to 1.2 s for the JSON, and 2.0 to 2.4 s for the
  TXT.
- **Two COPYs side by side, on two connections that share an exported snapshot: left
  out.** Six turns with 300,000 rows took 0.71 to 1.20 times as long as one COPY after
  the other, in the median 0.80; on an idle machine it may be less. It would take a
  second session, and a thread that cannot be cancelled while it uploads.
- **What keeps an archive to a folder from 1.0**: see the table of the stages: start-up,
  planning, reading back and `fsync`, which psql does not do. Taking a million rows of
  489 bytes over from COPY, a call each, and hashing them computes 1.3 s; SHA-256 alone
  takes 0.3 s for as many bytes.
- **Memory of an archive to S3** depends on whether an object fills a part of an upload,
  of 8 MiB. 100,000 rows in eleven months do not (88 MB); 200,000, 600,000 and 3,000,000
  rows do, and needed 105 MB each. With parts of 5 MiB that are copied once instead of
  twice 600,000 rows needed 90 MB. One run each.
"""
