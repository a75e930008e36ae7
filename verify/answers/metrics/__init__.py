"""Quality metrics of captions, answers and matching, with paired bootstrap intervals."""
