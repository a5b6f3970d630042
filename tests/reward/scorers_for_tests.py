"""Scorer functions that tests name as ``scorers_for_tests:…``."""


def lengths(prompt: str, response: str, reference: str | None) -> float:
    return len(response)


def infinite(prompt: str, response: str, reference: str | None) -> float:
    return float("inf")


def nothing(prompt: str, response: str, reference: str | None) -> None:
    return None
