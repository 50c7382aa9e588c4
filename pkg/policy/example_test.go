package policy_test

import (
	"fmt"
	"net/netip"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
)

// A relay decides which client may reach which server, and there which target.
func ExampleRelay_Allow() {
	rule, err := policy.ParseRule("nas:22")
	if err != nil {
		fmt.Println(err)
		return
	}
	relay, err := policy.NewRelay([]policy.Peer{
		{ID: "laptop", Role: policy.RoleClient, Keys: []ident.PublicKey{{1}}, Allowed: []policy.Rule{rule}},
		{ID: "nas", Role: policy.RoleServer, Keys: []ident.PublicKey{{2}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, target := range []string{":22", ":80"} {
		d := relay.Allow("laptop", "nas", target)
		fmt.Printf("%v: %s\n", d.Allowed, d.Reason)
	}
	// Output:
	// true: laptop may reach nas
	// false: laptop may reach nas, but not its target :80
}

// A server decides which client may reach which of its services, and what it dials for them.
func ExampleServices_Resolve() {
	target, _ := policy.ParseServiceTarget("localhost:22")
	laptops, _ := policy.ParsePattern("laptop*")
	services, err := policy.NewServices([]policy.Service{
		{Name: "ssh", Target: target, Clients: []policy.Pattern{laptops}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ownAddress := func(netip.Addr) bool { return false }
	asked, _ := policy.ParseTarget("ssh")
	for _, client := range []string{"laptop-7", "phone"} {
		dial, d := services.Resolve(client, asked, ownAddress)
		fmt.Printf("%v: %s", d.Allowed, d.Reason)
		if d.Allowed {
			fmt.Printf("; dial %s %v", dial.Network(), dial.Addresses())
		}
		fmt.Println()
	}
	// Output:
	// true: laptop-7 may reach ssh; dial tcp [127.0.0.1:22 [::1]:22]
	// false: the clients of ssh do not include phone
}

// All spellings of a target are parsed to one canonical text, so that targets can be compared.
func ExampleParseTarget() {
	for _, spelling := range []string{"22", "localhost:22", "[::1]:22", "DB.example.com.:5432", "ssh"} {
		target, err := policy.ParseTarget(spelling)
		fmt.Println(target, err)
	}
	// Output:
	// :22 <nil>
	// :22 <nil>
	// :22 <nil>
	// db.example.com:5432 <nil>
	// ssh <nil>
}
