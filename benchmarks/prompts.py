"""Prompts of the demo family: short ones are answered freely, long ones by copying from the prompt."""

from __future__ import annotations

SHORT = (
    "Explain in one paragraph how rainbows form.",
    "What is the difference between a virus and a bacterium?",
    "Give three tips for learning a new language.",
)
TEXT = (
    "The museum opens at nine in the morning and closes at six in the evening. On Mondays it stays closed. Tickets "
    "cost twelve euros, and children under the age of ten go in for free. The oldest room shows coins, maps and "
    "letters that sailors brought home from the islands. In the garden behind the house there is a small cafe with a "
    "view of the harbour."
)
LONG = (
    f"Repeat this text word for word:\n\n{TEXT}",
    f"Correct the spelling of this text, changing nothing else:\n\n{TEXT.replace('evening', 'evenning')}",
    f"Quote the sentences of this text one by one, each after a number:\n\n{TEXT}",
)
