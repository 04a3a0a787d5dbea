"""From evaluations to what people read. May import `core` to `evaluation`.

`evidence` and `paper` are what all rooms read; `figures` and `claims` do not know each other; `report` shows
both; `checks` holds them to what they were made from.
"""
