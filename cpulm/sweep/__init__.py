"""Many runs that differ in a few settings: chosen, trained side by side, thinned out, compared."""
