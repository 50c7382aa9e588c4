package parity

import "math"

// poissonTail returns the probability of more than n events where mean events are expected.
func poissonTail(mean float64, n int) float64 {
	term := math.Exp(-mean)
	sum := term
	for k := 1; k <= n; k++ {
		term *= mean / float64(k)
		sum += term
	}
	return max(0, 1-sum)
}
