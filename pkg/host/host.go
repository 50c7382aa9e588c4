// Package host connects this process to the host on which it runs.
//
// Its one idea: a daemon says how it stands and asks for what it needs, and on each host that works
// or quietly does nothing. The rest of the program knows neither systemd nor control groups.
//
// In the order in which a daemon uses it:
//
//	log, err := host.OpenLog(host.LogAuto, os.Stderr, level, ids) // journal, text or JSON
//	defer log.Close()
//	service := host.NewService()
//	limit := host.LimitMemory(os.DirFS("/"), log.Logger)   // below the control group's limit
//	listeners, err := service.Streams("127.0.0.1:2200")    // inherited sockets, if any
//	service.Ready("listening")
//	go host.ReleaseMemory(ctx)                             // after a burst
//
// [Log] never blocks a caller: while nobody reads it, lines are dropped and counted. [Service] is
// systemd: states ([Service.Ready], [Service.Status]), the watchdog ([Service.Feed]), and sockets
// that are inherited from socket units or kept over a restart ([Service.Keep]). The tune_* files
// fit the process to the host's memory and processors. [PeerOf] returns who has connected to a Unix
// socket, and [ClockTrouble] whether the clock can be right.
//
// All functions may be called from any goroutine. Those that take a context work until it is done.
package host
