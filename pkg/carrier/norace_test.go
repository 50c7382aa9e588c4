//go:build !race

package carrier

const raced = false
