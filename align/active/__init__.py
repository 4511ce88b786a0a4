"""The active loop: pool, posterior, choice, people, training, and round again until it stops.

`loop.Loop.run` is the story. Beside it, one file for each idea: `pool` (what may be asked), `fresh`
(the policy's own answers), `said` (what people answered, as labels and rows), `fit` (reward models
and what they believe: `belief`), `strategies` (YAML to `feedback.acquisition`), `choose` and
`worth` (which questions, pairs or rankings), `desks` (who is asked), `measure` and `stop`, and
`rounds` (what is on disk). Leaves out the mathematics of choosing: `feedback.acquisition`.
"""
