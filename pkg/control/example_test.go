package control_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"ptthqd/pkg/control"
)

// answers is a Backend with fixed answers. A real one is the daemon.
type answers struct{ control.Backend }

func (answers) Status() *control.Status {
	return &control.Status{
		Role:    "relay",
		Summary: "listening on [::]:30380; 2 of 3 peers connected",
	}
}

// A daemon serves its Backend at the control socket, and a command asks with a Client.
func Example() {
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	// The daemon.
	socket := control.SocketPath(filepath.Join(dir, "control.sock"), "/etc/ptthq.toml")
	listener, err := control.Listen(context.Background(), socket)
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{Handler: control.Handler(answers{})}
	go server.Serve(listener)
	defer server.Close()

	// The command.
	client := &control.Client{Socket: socket}
	status, err := client.Status(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(status.Role, "-", status.Summary)
	// Output: relay - listening on [::]:30380; 2 of 3 peers connected
}
