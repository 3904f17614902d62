"""The orders system: an HTTP API takes orders and registrations, workers decide them, emails say so.

The layers, lowest first; `api`, `handlers` and `emails` never import each other, only messages join them:

    domain      rules, pure
    messages    what travels
    store       tables, and what is read from them
    placing | deciding      what the API and the worker write, set-based
    api | handlers | emails
    wiring      the program, put together

Beside the road: `catalogue` (products and stock from a file), `dataset` and `replay` (real baskets as load),
`mailbox` (a mail server for development), `stack`, `up` and `demo` (everything at once on one machine).
"""
