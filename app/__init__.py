"""The service: HTTP, persistence, dispatch, dashboard, command line."""
