package session

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"ptthqd/pkg/wire"
)

// lineage returns the targets of this server's sessions through which an open came, or a refusal if
// the open would go to one of those targets again. An open comes through a session if client and
// server are on one host, and the client has accepted the connection that the session has dialled.
func (v *Server) lineage(origin []byte, source, target string) (above []string, r *Refusal) {
	if v.config.Origin == nil || len(origin) == 0 {
		return nil, nil
	}
	v.mu.Lock()
	same := slices.Clone(v.dialled[source])
	v.mu.Unlock()
	for _, s := range same { // the fields read here don't change any more
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

// lookAgain looks up the lineage of a session again, if none was found at its open. The open may
// come before the goroutine that has dialled P1's connection has noted that.
func (v *Server) lookAgain(s *session) *Refusal {
	if s.above != nil {
		return nil
	}
	above, refusal := v.lineage(s.origin, s.info.Source, s.info.Target)
	s.above = above // no other goroutine reads it before dialledLocked
	return refusal
}

// dialledLocked notes a session's connection to P5, if P5 is on this host. The caller holds the
// session's lock.
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

// undialLocked forgets what dialledLocked has noted.
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
