package seal

import (
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/backup"
)

// Package backup, which knows nothing of this one, tells sealed values by how
// they begin.
func TestBackupKnowsSealedValues(t *testing.T) {
	if !strings.HasPrefix(magic, backup.SealedMagic) {
		t.Errorf("values begin with %q, backup looks for %q", magic, backup.SealedMagic)
	}
	if !strings.HasPrefix(Prefix, backup.OwnPrefix) || !strings.HasPrefix(FileKey, backup.OwnPrefix) {
		t.Errorf("%s and %s are not below %s: backup does not give them to who opens values", Prefix, FileKey, backup.OwnPrefix)
	}
}
