"""The agent itself: started, watched, updated, and what is wrong with it in plain words."""
