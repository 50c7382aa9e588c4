package splice_test

import (
	"context"
	"fmt"
	"io"
	"sync"

	"ptthqd/pkg/splice"
)

// A relay joins the stream of a client with a stream to a server. Either end may finish its half
// first: the other direction goes on.
func ExampleJoin() {
	client, fromClient := pipe(1024) // in memory; a relay has streams of links
	toServer, server := pipe(1024)

	var join splice.Join
	var work sync.WaitGroup
	work.Go(func() {
		end := join.Run(context.Background(), fromClient, toServer)
		fmt.Println("ended in order:", end.By == splice.Nobody)
	})

	_ = client.Finish([]byte("question"))
	question, _ := io.ReadAll(server)
	_ = server.Finish([]byte("answer"))
	answer, _ := io.ReadAll(client)
	work.Wait()
	fmt.Printf("%s, %s\n", question, answer)
	fmt.Println(join.Forth.Bytes(), "bytes forth,", join.Back.Bytes(), "back")
	// Output:
	// ended in order: true
	// question, answer
	// 8 bytes forth, 6 back
}
