package durable

import (
	"strings"
	"testing"
)

type doc struct {
	Name  string `json:"name"`
	Port  int    `json:"port"`
	Later string `json:"later,omitempty"`
}

// TestSealed: a flipped bit is noticed, or changes nothing.
func TestSealed(t *testing.T) {
	t.Parallel()
	want := doc{Name: "a", Port: 6443, Later: "x"}
	b, err := Seal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got doc
	if err := Open(b, &got); err != nil || got != want {
		t.Fatalf("%+v, %v from\n%s", got, err, b)
	}
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			got := doc{}
			if err := Open(b, &got); err == nil && got != want {
				t.Errorf("bit %d of byte %d flipped gives %+v", bit, i, got)
			}
			b[i] ^= 1 << bit
		}
		if err := Open(b[:i], &got); err == nil {
			t.Errorf("cut to %d bytes it is read", i)
		}
	}
	var older struct{ Name string } // does not know all fields
	if err := Open(b, &older); err != nil || older.Name != "a" {
		t.Errorf("an older program: %+v, %v", older, err)
	}
	if err := Open([]byte(`{"name": "by hand"}`), &got); err != nil || got.Name != "by hand" {
		t.Errorf("without a sum: %+v, %v", got, err)
	}
	for _, v := range []any{[]int{1}, struct{}{}, "x"} {
		if b, err := Seal(v); err == nil || !strings.Contains(err.Error(), "no JSON object") {
			t.Errorf("%v is sealed as %s, %v", v, b, err)
		}
	}
}
