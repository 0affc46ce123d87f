"""What several tests share: fakes, oracles, drivers. No tests."""
