module starview/supercronic_parser

go 1.26.2

require (
	github.com/aptible/supercronic v0.2.45
	github.com/sirupsen/logrus v1.9.4
)

require golang.org/x/sys v0.43.0 // indirect
