package host

import "time"

// Processors is how AdaptProcessors decides.
type Processors struct{ p processors }

// NewProcessors has all there are.
func NewProcessors(most int) *Processors { return &Processors{processors{most: most, now: most}} }

// Use takes what was used.
func (p *Processors) Use(used, in time.Duration) { p.p.use(used, in) }

// Now is how many there are.
func (p *Processors) Now() int { return p.p.now }
