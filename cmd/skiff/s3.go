package main

import (
	"errors"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/backup"
)

// s3Flags say how to reach a service that speaks S3. Servers and the commands of
// skiff snapshot have them.
func s3Flags() []cli.Flag {
	return []cli.Flag{
		stringFlag("s3-endpoint", "URL of the service of s3://BUCKET/PREFIX, without a path", backup.DefaultS3Endpoint),
		stringFlag("s3-region", "region of the bucket (default: that of the service; us-east-1 if it is not Amazon's)", ""),
		stringFlag("s3-credentials-file", "file with access key and secret key, as ~/.aws/credentials has them, which only its owner may read (default: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN of the environment)", ""),
		stringFlag("s3-ca-file", "PEM file of CAs that the service is trusted by, beside those of the system", ""),
		boolFlag("s3-path-style", "put the bucket into the path of the URL, not into the host name; done by itself where the service is not Amazon's, Google's or Alibaba's"),
		boolFlag("s3-insecure", "allow an endpoint http://..., to which everybody on the way can listen"),
	}
}

// isS3 says whether an argument is a place or file in a bucket.
func isS3(arg string) bool { return strings.HasPrefix(arg, backup.S3Scheme) }

// openS3 makes the place s3://BUCKET/PREFIX that is reached as s3Flags say. What
// is wrong is the caller's use of flag, and nobody is asked.
func openS3(c *cli.Context, flag, place string) (*backup.S3, error) {
	s := backup.S3Config{
		Endpoint: c.String("s3-endpoint"), Region: c.String("s3-region"), CredentialsFile: c.String("s3-credentials-file"),
		CAFile: c.String("s3-ca-file"), PathStyle: c.Bool("s3-path-style"), Insecure: c.Bool("s3-insecure"),
	}
	if strings.HasPrefix(s.Endpoint, "http://") && !s.Insecure {
		return nil, usagef("--s3-endpoint %s is not encrypted: use https, or say --s3-insecure", s.Endpoint)
	}
	if s.CredentialsFile == "" {
		s.AccessKey, s.SecretKey, s.SessionToken = os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN")
		if s.AccessKey == "" || s.SecretKey == "" {
			return nil, usagef("%s %s needs credentials: name a file with --s3-credentials-file, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", flag, place)
		}
	}
	p, err := backup.NewS3(place, s)
	var path *os.PathError
	if err != nil && !errors.As(err, &path) {
		return nil, usagef("%s: %v", flag, err)
	}
	return p, err
}
