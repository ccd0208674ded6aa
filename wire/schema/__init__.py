"""The contract in other forms: SBE, C++, tables."""
