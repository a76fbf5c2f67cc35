"""The operator: model families and routing policies become predictors, replicas and weights."""
