"""One module a protocol: request bytes → `Call`, `Answer` → response bytes."""
