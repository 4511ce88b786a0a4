"""Self-training: a model's own answers or labels teach it, as far as held-out data agree.

`loop.go` is the story of both kinds. Policies (`policy`): draw answers, keep the good ones
(`harvest`), train, measure. Reward models (`preferences`): label pairs nobody compared (`pseudo`),
keep the sure, balanced and different ones, train, measure. Beside them, one file for each idea:
`schedule` and `balance` and `weights` (which labels, how much), `gate` (what is promoted, when to
end), `average` (the teacher), `alike` (near-duplicates), `audit` (what people check), `rounds`
(what is on disk), `story`. Leaves out training itself: `align.stages`.
"""
