"""The pages that people look at: server-rendered, live by an event stream, readable without a script."""
