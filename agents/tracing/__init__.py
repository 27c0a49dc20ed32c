"""Spans of what agents do, for a collector of OpenTelemetry: the process of `aiosctl spans`.

It watches the kernel's events as any client may, and sees what whoever runs it may see. A collector
that is slow or away costs spans, never the kernel anything.
"""
