package session

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"ptthqd/pkg/wire"
)

// lineage returns the targets of the sessions of this server through which an open came,
// as client and server may be on one host: the connections that such sessions have dialled
// were accepted by the client. It refuses one that would go to a target for the second time.
func (v *Server) lineage(origin []byte, source, target string) (above []string, r *Refusal) {
	if v.config.Origin == nil || len(origin) == 0 {
		return nil, nil
	}
	v.mu.Lock()
	same := slices.Clone(v.dialled[source])
	v.mu.Unlock()
	for _, s := range same { // what is read of them doesn't change any more
		if v.config.Origin(origin, s.dialledFrom, s.info.Peer) {
			above = append(slices.Clone(s.above), s.info.Target)
			break
		}
	}
	if i := slices.Index(above, target); i >= 0 {
		way := append(above[i:], target)
		return nil, &Refusal{wire.StatusLoop, fmt.Sprintf(
			"the mapping leads to itself: the client on this host listens where the server dials (%s); give the mapping another listen or target",
			strings.Join(way, ", then "))}
	}
	return above, nil
}

// lookAgain finds the lineage of a session of which it wasn't known at its open: that may
// come before the goroutine that has dialled its connection knows that it has.
func (v *Server) lookAgain(s *session) *Refusal {
	if s.above != nil {
		return nil
	}
	above, refusal := v.lineage(s.origin, s.info.Source, s.info.Target)
	s.above = above // nobody else reads it before dialledLocked
	return refusal
}

// dialledLocked notes a session's connection to P5, if that is on this host. The caller
// holds the session's lock.
func (v *Server) dialledLocked(s *session, conn Conn) {
	c, ok := conn.(net.Conn)
	if v.config.Origin == nil || !ok {
		return
	}
	local, ok := c.LocalAddr().(*net.TCPAddr)
	remote, too := c.RemoteAddr().(*net.TCPAddr)
	if !ok || !too || !local.IP.Equal(remote.IP) && (!local.IP.IsLoopback() || !remote.IP.IsLoopback()) {
		return
	}
	s.dialledFrom = local.String()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dialled == nil {
		v.dialled = make(map[string][]*session)
	}
	v.dialled[s.dialledFrom] = append(v.dialled[s.dialledFrom], s)
}

// undialLocked forgets it.
func (v *Server) undialLocked(s *session) {
	if s.dialledFrom == "" {
		return
	}
	left := slices.DeleteFunc(v.dialled[s.dialledFrom], func(other *session) bool { return other == s })
	if len(left) == 0 {
		delete(v.dialled, s.dialledFrom)
	} else {
		v.dialled[s.dialledFrom] = left
	}
}
