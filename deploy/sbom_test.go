package deploy_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestBillOfMaterials(t *testing.T) {
	program := filepath.Join(t.TempDir(), "ptthqd")
	if said, err := exec.Command("go", "build", "-o", program, "ptthqd/cmd/ptthqd").CombinedOutput(); err != nil {
		t.Fatalf("%v:\n%s", err, said)
	}
	out, err := exec.Command("./sbom", program, "ptthqd", "1.2.3").Output()
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		BOMFormat, SpecVersion string
		Metadata               struct {
			Component struct {
				Name, Version string
				Hashes        []struct{ Alg, Content string }
			}
		}
		Components []struct{ Type, Name, Version, PURL string }
	}
	if err := json.Unmarshal(out, &bill); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if c := bill.Metadata.Component; bill.BOMFormat != "CycloneDX" || c.Name != "ptthqd" || c.Version != "1.2.3" || len(c.Hashes) != 1 || len(c.Hashes[0].Content) != 64 {
		t.Errorf("%+v", bill)
	}
	var names []string
	for _, c := range bill.Components {
		names = append(names, c.Name)
		if c.PURL != "pkg:golang/"+c.Name+"@"+c.Version {
			t.Errorf("%+v", c)
		}
		if c.Name == "stdlib" && "go"+c.Version != runtime.Version() {
			t.Errorf("Go's version is %s, not %s", runtime.Version(), c.Version)
		}
	}
	if !slices.Contains(names, "stdlib") || !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "/") }) {
		t.Errorf("components %v", names)
	}
}
