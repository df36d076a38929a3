"""What tests share: oracles, tables of cases, calls. No test file imports from another."""
