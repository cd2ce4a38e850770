"""From a guide's output to the best Normal of each observation, by steps on the model's own density."""
