package backup

import (
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/skiff-sh/skiff/fsm/golden"
)

// goldenPassphrase and the identity open the golden files; they protect nothing.
const (
	goldenPassphrase = "golden passphrase"
	goldenKeyFile    = "key.txt"
)

// TestGoldenSnapshots reads the snapshot files of every release, in every form.
func TestGoldenSnapshots(t *testing.T) {
	if golden.Update(t) {
		dir := golden.Fresh(t, "snapshots")
		key, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		pass, err := PassphraseRecipient([]byte(goldenPassphrase))
		if err != nil {
			t.Fatal(err)
		}
		golden.WriteJSON(t, filepath.Join(dir, goldenKeyFile), key.String())
		f := sample(t, 50)
		for name, o := range map[string]SaveOptions{
			"plain.snap": {}, "small.snap.zst": {Compress: true}, "key.snap.zst.age": {Compress: true, Encrypt: []age.Recipient{key.Recipient()}},
			"passphrase.snap.age": {Encrypt: []age.Recipient{pass}},
		} {
			if _, err := Save(t.Context(), source(f), filepath.Join(dir, name), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	golden.Each(t, "snapshots", func(t *testing.T, dir string) {
		key, err := age.ParseX25519Identity(golden.ReadJSON[string](t, filepath.Join(dir, goldenKeyFile)))
		if err != nil {
			t.Fatal(err)
		}
		pass, err := PassphraseUnlock([]byte(goldenPassphrase))
		if err != nil {
			t.Fatal(err)
		}
		for name, unlock := range map[string]Unlock{"plain.snap": nil, "small.snap.zst": nil, "key.snap.zst.age": {key}, "passphrase.snap.age": pass} {
			path := filepath.Join(dir, name)
			info, err := Status(path, unlock...)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if info.ClusterID != "test-cluster" || info.TotalKeys != 51 || info.Index != 7 || info.Term != 3 {
				t.Errorf("%s: %+v", name, info)
			}
			if _, err := Restore(t.Context(), path, filepath.Join(t.TempDir(), "data"), RestoreOptions{Unlock: unlock}); err != nil {
				t.Errorf("%s: restore: %v", name, err)
			}
		}
	})
}
