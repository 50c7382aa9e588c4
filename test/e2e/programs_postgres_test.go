//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

// A postgreSQL is a cluster of its own. Root can't run one, so it gives it to
// the user postgres then.
type postgreSQL struct {
	port int
	psql string
	dir  string
}

func startPostgreSQL(t *testing.T) *postgreSQL {
	t.Helper()
	p := &postgreSQL{port: testutil.FreePort(t), psql: need(t, "psql", "postgresql-client")}
	initdb, postgres := need(t, "initdb", "postgresql"), need(t, "postgres", "postgresql")
	dir, err := os.MkdirTemp("", "ptthqd-pg-") //nolint:usetesting // the user postgres can't enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p.dir = dir
	owner := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		account, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("the package postgresql makes a user postgres: %v", err)
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		owner.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(dir, "data")
	make := exec.Command(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	make.SysProcAttr, make.Dir = owner, dir
	outputOf(t, make)
	serve := exec.Command(postgres, "-D", data, "-F", "-p", strconv.Itoa(p.port), "-k", dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "full_page_writes=off", "-c", "max_wal_size=4GB")
	serve.SysProcAttr, serve.Dir = owner, dir
	startProgram(t, serve, syscall.SIGQUIT, fmt.Sprintf("127.0.0.1:%d", p.port))
	eventually(t, 20*time.Second, "the database takes queries", func() error { // it listens before it does
		return exec.Command(p.psql, p.at(p.port, "postgres", "-X", "-c", "select 1")...).Run()
	})
	return p
}

// at are the arguments that say where the cluster is to be reached.
func (p *postgreSQL) at(port int, database string, args ...string) []string {
	return append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "postgres", "-d", database}, args...)
}

// query runs SQL over a port of this host.
func (p *postgreSQL) query(t *testing.T, port int, database, sql string) string {
	t.Helper()
	cmd := exec.Command(p.psql, p.at(port, database, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql)...)
	return strings.TrimSpace(outputOf(t, cmd))
}

// TestPostgreSQL queries and benches a database.
func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	pgbench := need(t, "pgbench", "postgresql-contrib")
	db := startPostgreSQL(t)
	w := newWorld(t, endServer)
	port := w.forward(strconv.Itoa(db.port))
	w.all()

	if got := db.query(t, port, "postgres", "select sum(i) from generate_series(1, 1000) i"); got != "500500" {
		t.Errorf("a sum is %q", got)
	}
	if _, code := runProgram(t, exec.Command(db.psql, db.at(port, "postgres", "-X", "-v", "ON_ERROR_STOP=1", "-c", "select 1/0")...)); code != 1 {
		t.Errorf("a query that fails: exit code %d", code)
	}
	for _, args := range [][]string{{"-i", "-q", "-s", "1"}, {"-c", "4", "-T", "2"}, {"-c", "2", "-T", "2", "-C", "-S"}} {
		// pgbench takes the database as an argument.
		cmd := exec.Command(pgbench, append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "postgres"}, append(args, "postgres")...)...)
		out := outputOf(t, cmd)
		if args[0] != "-i" && !strings.Contains(out, "number of failed transactions: 0 ") {
			t.Errorf("pgbench %v:\n%s", args, out)
		}
	}
}
