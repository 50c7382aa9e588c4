package config

import (
	"fmt"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

type publicKey struct {
	key ident.PublicKey
	at  location
}

// publicKeys reads a public_key. An error never repeats the value: it might be a private key.
func (p *parser) publicKeys(s *section) []publicKey {
	if _, there := s.values["public_key"]; !there {
		s.missing("public_key")
		return nil
	}
	items, _ := s.texts("public_key")
	if list, ok := s.values["public_key"].([]any); ok && len(list) == 0 {
		p.add(s.location("public_key"), "", "is an empty list")
	}
	var keys []publicKey
	for _, it := range items {
		key, err := ident.ParsePublicKey(it.text)
		if err != nil {
			p.add(it.at, "write what `ptthqd pubkey` prints at that node",
				"is not a public key (44 characters of base64)")
			continue
		}
		keys = append(keys, publicKey{key, it.at})
	}
	return keys
}

// own reports a key that another peer or relay has. by names the owner in errors.
func (p *parser) own(at location, by string, key ident.PublicKey, hint string) {
	if first, ok := p.keys[key]; ok {
		p.add(at, hint, "%s has this key already, at %v", first.by, first.at.source())
		return
	}
	p.keys[key] = use{by, at}
}

func (p *parser) peer(s *section) {
	peer := policy.Peer{Source: policy.Source{File: s.file, Line: s.at.Value.Line}}
	id := p.names(s, &peer)
	if text, at, ok := s.required("role"); ok {
		switch text {
		case "client", "server":
			peer.Role = policy.Role(text)
		case "relay":
			p.add(at, `write "client" or "server"`, "a relay is no peer of a relay")
		default:
			p.badChoice(at, text, []string{"client", "server"})
		}
	}
	for _, k := range p.publicKeys(s) {
		p.own(k.at, fmt.Sprintf("peer %q", id), k.key,
			"each peer has a key of its own, made with `ptthqd keygen`")
		peer.Keys = append(peer.Keys, k.key)
	}
	items, _ := s.texts("allowed_servers")
	if _, there := s.values["allowed_servers"]; there && peer.Role == policy.RoleServer {
		p.add(s.nameLocation("allowed_servers"), "",
			"belongs to a peer with the role client, and this is a server")
	}
	for _, it := range items {
		rule, err := policy.ParseRule(it.text)
		if err != nil {
			p.judge(it.at, err)
			continue
		}
		rule.Source = it.at.source()
		peer.Allowed = append(peer.Allowed, rule)
	}
	p.config.Peers = append(p.config.Peers, peer)
}

// names reads the names of a peer, and returns the first as it stands, valid or not.
func (p *parser) names(s *section, peer *policy.Peer) (id string) {
	if _, there := s.values["id"]; !there {
		s.missing("id")
	}
	items, ok := s.texts("id")
	switch {
	case ok && len(items) == 0:
		p.add(s.location("id"), "write "+keysByName["peers.id"].Example, "is empty")
	case len(items) > wire.MaxNames:
		p.add(s.location("id"), "take out those by which nobody calls the peer any more",
			"%d names; %d are the most", len(items), wire.MaxNames)
	}
	for i, it := range items {
		if i == 0 {
			id = it.text
		}
		switch {
		case it.text == "":
			p.add(it.at, "write "+keysByName["peers.id"].Example, "is empty")
		case !p.checkID(it.at, it.text) || !p.once(it.at, "peer", it.text):
		case i == 0:
			peer.ID = it.text
		default:
			peer.Others = append(peer.Others, it.text)
		}
	}
	return id
}
