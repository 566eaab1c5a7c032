"""Here it is learnt: models, strategies, and how learners are trained and evaluated."""
