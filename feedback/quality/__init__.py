"""How far judgements can be trusted: agreement, reliability, annotators, disputed pairs."""
