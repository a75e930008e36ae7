"""How a goal of make becomes stages: options, the stages of each goal, what CI services read."""
