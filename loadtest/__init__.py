"""Load tests: locust scenarios over the client, with every answer checked; see docs/loadtest.md."""
